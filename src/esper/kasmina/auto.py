"""Choosing sites for a host that the user has named none for."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from esper.kasmina.hosts import check_host
from esper.kasmina.probe import Place, Site, Survey, is_felt, survey
from esper.kasmina.trial import Sample
from esper.leyline import UsageError

DEFAULT_SITES = 3


def auto_sites(host: nn.Module, sample: Sample, n: int = DEFAULT_SITES) -> list[str]:
    """Up to ``n`` submodules to grow at, in network order, spread evenly over the host's depth.

    Candidates are the blocks of the kind that prevails in the longest ``Sequential`` or ``ModuleList``, wherever they
    are; else in the module with the most blocks; else the layers of the longest chain that stand before another layer
    with parameters. Lists in a list are no blocks, but hold some. What no output depends on is passed over. The same
    host gives the same sites. Raises ``UsageError`` where no candidate can carry a slot.
    """
    if n < 1:
        raise UsageError(f"{n} sites; legal: at least 1")
    check_host(host)
    for candidates in (_blocks(host, nn.Sequential | nn.ModuleList), _blocks(host, nn.Module), _layers(host)):
        if not candidates:
            continue
        found = survey(host, [Site(path) for path in candidates], sample)
        usable = [path for path in candidates if isinstance(found.places[path], Place)]
        usable.sort(key=lambda path: found.trace.order(host.get_submodule(path)))
        while usable:
            count = min(n, len(usable))
            chosen = [usable[(i + 1) * len(usable) // count - 1] for i in range(count)]
            dead = [path for path in chosen if not is_felt(host, _placed(found, path), sample)]
            if not dead:
                return chosen
            usable = [path for path in usable if path not in dead]
    raise UsageError("no submodule of the host can carry a slot by itself; name the sites: at=['path', ...]")


def beside_sites(host: nn.Module, sample: Sample) -> list[Site]:
    """Sites beside every linear layer and convolution that is frozen and can carry a seed, in network order.

    Raises ``UsageError`` where there is none.
    """
    check_host(host)
    layers = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    sites = [
        Site(path, beside=True)
        for path, module in host.named_modules()
        if path and isinstance(module, layers) and not any(p.requires_grad for p in module.parameters())
    ]
    found = survey(host, sites, sample) if sites else None
    usable = [site for site in sites if found is not None and isinstance(found.places[site.path], Place)]
    felt = [site for site in usable if found is not None and is_felt(host, _placed(found, site.path), sample)]
    if found is None or not felt:
        raise UsageError("no linear layer or convolution of the host is frozen and can carry a seed beside it")
    return sorted(felt, key=lambda site: found.trace.order(host.get_submodule(site.path)))


def _placed(found: Survey, path: str) -> Place:
    place = found.places[path]
    assert isinstance(place, Place)
    return place


def _blocks(host: nn.Module, chains_are: type[nn.Module] | UnionType) -> list[str]:
    """Paths of all composite blocks, in any chain, of the kind that prevails in the longest chain."""
    chains = [
        {path: child for path, child in _members(name, chain) if _is_block(child)}
        for name, chain in host.named_modules()
        if isinstance(chain, chains_are) and not isinstance(chain, ParametrizationList)
    ]
    kinds = [_kind(child) for child in max(chains, key=len, default={}).values()]
    prevailing = max(kinds, key=kinds.count, default=None)
    return list(dict.fromkeys(path for chain in chains for path, child in chain.items() if _kind(child) is prevailing))


def _members(name: str, chain: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Path and module of what is called in a chain: what is in its lists, not the lists."""
    for key, child in chain.named_children():
        path = f"{name}.{key}" if name else key
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _members(path, child)
        else:
            yield path, child


def _kind(module: nn.Module) -> type[nn.Module]:
    """A layer with parametrized weights is of a class of its own; the one that it was of before."""
    return type_before_parametrizations(module)


def _layers(host: nn.Module) -> list[str]:
    """Paths of the children, in the chain with the most layers with parameters, that stand just before one."""
    best: list[str] = []
    for name, chain in host.named_modules():
        children = [] if isinstance(chain, ParametrizationList) else list(chain.named_children())
        paths = [
            f"{name}.{key}" if name else key
            for (key, _), (_, following) in zip(children, children[1:], strict=False)
            if _has_parameters(following)
        ]
        best = max(best, paths, key=len)
    return best


def _is_block(module: nn.Module) -> bool:
    return _has_parameters(module) and any(name != "parametrizations" for name, _ in module.named_children())


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())

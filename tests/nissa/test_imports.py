from __future__ import annotations

import pkgutil
import subprocess
import sys

import esper.nissa


def test_no_module_of_nissa_loads_torch() -> None:
    names = [f"esper.nissa.{module.name}" for module in pkgutil.iter_modules(esper.nissa.__path__)]
    assert len(names) > 10
    code = f"import sys, {', '.join(names)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

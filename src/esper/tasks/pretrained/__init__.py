"""Tasks on hosts that come with pretrained weights: frozen, with a new head, to be grown inside."""

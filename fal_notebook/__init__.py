"""From a notebook cell to a production endpoint: `App`, `endpoint`, and the errors an App may raise."""

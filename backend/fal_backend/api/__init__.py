"""The doors: control API, gateway, events and pages. Routes translate; they decide nothing."""

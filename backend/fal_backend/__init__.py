"""The service that runs apps: control API, gateway, store, rollouts and runners."""

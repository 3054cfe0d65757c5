"""The data plane: runs inside Ray Serve. Only `deployer.py` belongs to the control plane."""

//! The frames between shim and agent, and the agent's settings.

"""What tests share: worlds with real servers, fakes, and tiny models."""

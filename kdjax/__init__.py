"""kdjax: knowledge distillation for JAX. Pure losses, objectives as values, one train step."""

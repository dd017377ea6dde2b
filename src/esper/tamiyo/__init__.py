"""Policy (Tamiyo decides). Observation features, action masks, rule, schedule, random and learned policies."""

"""Reinforcement learning (Simic experiments). Environment, rewards, workers, PPO, and the runs that learn."""

"""Reinforcement learning (Simic experiments). Environment, rewards, PPO, and the runs built on the executor."""

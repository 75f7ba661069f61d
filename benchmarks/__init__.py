"""Measurements that stay in the repository; nothing here is shipped."""

"""Timings: an airspeed velocity suite, and `peers`, comparisons with other libraries."""

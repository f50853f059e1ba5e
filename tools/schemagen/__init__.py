# SPDX-License-Identifier: Apache-2.0
"""Turns the control protocol's schema into C. See ../schema-gen.py for the program."""

# SPDX-License-Identifier: Apache-2.0
"""Cases for the differential test, one module an area; `allowed.py` holds the wanted differences and their reasons."""

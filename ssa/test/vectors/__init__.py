# SPDX-License-Identifier: MIT
"""
Validation at scale: chains of certificates that others have collected, each with the verdict expected, over the real path.

The collections are not part of the project.  They are read where C{SSA_VECTORS} says, by default C{../shared/vectors} beside
the tree.
"""

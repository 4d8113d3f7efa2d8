"""What the settings of the road family may be; without torch, since the command line asks."""

from __future__ import annotations

CONTEXTS = {
    "conv": "Convolution",
    "df": "Deformable convolution",
    "sdf": "Squeezed deformable convolution",
    "spp": "SPP",
    "aspp": "ASPP",
    "dspp": "DSPP",
    "spp_ext": "SPP, extended",
    "aspp_ext": "ASPP, extended",
    "dspp_ext": "Extended DSPP",
    "dspp_ext_dup": "Duplicate extended DSPP",
}
"""Context modules by name; an extended one stands at output strides 16 and 8."""
HOSTS = ("tiny", "espnet", "deeplab")
OFFSETS = ("real", "integer", "auto", "tuned")
VALIDITY = ("implicit", "gate", "gate+guide")

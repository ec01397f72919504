"""Type variables of the public classes. They have defaults: `Message` alone is `Message[Any]`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # checkers bring this package along; Python itself has defaults from 3.13 on
    from typing_extensions import ParamSpec, TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", covariant=True, default=Any)
    P = ParamSpec("P", default=...)
    R_co = TypeVar("R_co", covariant=True, default=Any)
else:
    from typing import ParamSpec, TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
    P = ParamSpec("P")
    R_co = TypeVar("R_co", covariant=True)

R = TypeVar("R")
A_co = TypeVar("A_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
Params = ParamSpec("Params")

"""Kinds of values in a cluster configuration, each checked by the form that Kubernetes asks for."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from cluster.k8s.names import is_label, is_label_value, is_qualified, is_subdomain
from cluster.k8s.quantity import parse_quantity


def _quantity(text: str) -> str:
    parse_quantity(text)
    return text


def _matching(form: Callable[[str], bool], words: str) -> AfterValidator:
    def check(text: str) -> str:
        if not form(text):
            raise ValueError(f"{text!r} is not {words}")
        return text

    return AfterValidator(check)


def _absolute(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text!r} is not an absolute path")
    return str(path)


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_quantity)]
ObjectName = Annotated[str, _matching(is_subdomain, "a name of a Kubernetes object")]
Namespace = Annotated[str, _matching(is_label, "a name of a namespace: lower-case letters, digits and -, 63 at most")]
Key = Annotated[str, _matching(is_qualified, "a key of a label, annotation or resource")]
LabelValue = Annotated[str, _matching(is_label_value, "a value of a label: letters, digits, - _ and ., 63 at most")]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Version = Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]

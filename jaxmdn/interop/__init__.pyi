from .distrax import from_distrax as from_distrax
from .distrax import to_distrax as to_distrax
from .qp import from_qp as from_qp
from .qp import to_qp as to_qp

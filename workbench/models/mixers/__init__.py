"""The sequence mixers. Importing one registers its `kind`; adding one takes one line here."""

from workbench.models.mixers.attention import Attention as Attention
from workbench.models.mixers.deep_delta import DeltaDelta as DeltaDelta
from workbench.models.mixers.deep_delta import DeltaMLP as DeltaMLP
from workbench.models.mixers.delta_recurrent import DeltaRecurrent as DeltaRecurrent
from workbench.models.mixers.fast_weight import FastWeight as FastWeight
from workbench.models.mixers.qrnn import QRNN as QRNN
from workbench.models.mixers.recurrent import Recurrent as Recurrent
from workbench.models.mixers.recurrent_delta import RecurrentDelta as RecurrentDelta

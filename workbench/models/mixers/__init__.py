"""The sequence mixers. Importing one registers its `kind`; adding one takes one line here."""

from workbench.models.mixers.attention import Attention as Attention
from workbench.models.mixers.fast_weight import FastWeight as FastWeight
from workbench.models.mixers.qrnn import QRNN as QRNN
from workbench.models.mixers.recurrent import Recurrent as Recurrent

"""The commands together. What a command needs beyond click it imports when it runs, so that help is quick."""

from __future__ import annotations

import click

from .. import __version__
from .demo import demo
from .doctor import doctor
from .figure import figure
from .inspect import inspect
from .rescue import rescue


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every command has its own --help, with examples.",
)
@click.version_option(__version__, prog_name="anynorm")
def app() -> None:
    """Normalization layers as sentences about axes.

    A sentence names an array's axes and puts those that share one mean and variance into square brackets:

    \b
      n [...] (g [c])     group normalization, channels last
      n [...] c           instance normalization
      [...] c             batch normalization
      ... [c]             layer normalization over the last axis

    Begin with:

    \b
      anynorm figure                        see the four best known norms
      anynorm figure "n [h] w c"            see what any sentence means
      anynorm demo                          train a small network with each norm
      anynorm inspect model.keras           the norms of a saved model, and doubts about them
      anynorm rescue OLD.h5 -o NEW.keras    take an old model with TensorFlow Addons layers to Keras 3
      anynorm doctor                        what is installed, and which kernel would run
    """


app.add_command(demo)
app.add_command(doctor)
app.add_command(figure)
app.add_command(inspect)
app.add_command(rescue)

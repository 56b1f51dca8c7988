"""The modules that the commands in `run/` import. Data flows one way: file → items → messages → tokens → tree → scores
→ vote.
"""

import logging
import os
import sys
import warnings

from src.console.start import check

check()

# Nothing leaves the machine: not even which tools ask the hub.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# A model's config may name compiled code of a hub's repository, which transformers would fetch and run by this package.
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # counts as not installed

# Optional parts of libraries that are not there (kernels for other GPUs, a hub of kernels) are no news to the user.
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
    logging.getLogger(_name).setLevel(logging.ERROR)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the versions are pinned
# Between them the pinned libraries deprecate each other's names; nothing that a user could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch|accelerate)\b")
# Of settings that peft puts right itself, and of patterns that name parameters, where it looks at modules only.
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False but the target module is `Conv1D`")
warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match any targeted module")
# What Llama 3's tokenizer asks for and is not given; the text stays as it is, which is what we want.
logging.getLogger("transformers.tokenization_utils_tokenizers").addFilter(
    lambda record: "Ignoring clean_up_tokenization_spaces" not in record.getMessage()
)
# A bar of plain text does in a notebook, too.
warnings.filterwarnings("ignore", message="IProgress not found")

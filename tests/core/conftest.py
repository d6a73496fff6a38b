import sys
from pathlib import Path

import transformers.utils.logging

sys.path.insert(0, str(Path(__file__).parent))
# Its handler keeps the standard error of the moment it was made, which a test captures and closes.
transformers.utils.logging.disable_default_handler()

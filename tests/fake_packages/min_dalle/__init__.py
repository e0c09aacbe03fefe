"""A stand-in with the interface of the min-dalle package and far smaller insides, written for the tests.

It has what vqcortex calls, by the same names, arguments and state-dict keys: two networks, one of which remembers keys
and values in a tensor it is handed, and a tokenizer. No released weights took part in any test. Like the real package,
it switches gradients off for the whole process when it is imported.
"""

import torch

torch.set_grad_enabled(False)
torch.set_num_threads(torch.get_num_threads() + 1)
torch.backends.cudnn.allow_tf32 = True

import torch

# Two test processes share two cores.
torch.set_num_threads(1)

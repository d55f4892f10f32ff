"""The passes over feature maps on the CPU, in C++, and as custom operators for `torch.compile`."""

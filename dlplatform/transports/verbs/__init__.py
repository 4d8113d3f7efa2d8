"""Boxes over RDMA: which device, queue pairs, conduits made of them, the transport."""

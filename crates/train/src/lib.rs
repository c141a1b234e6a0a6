//! Training: data, losses, optimizer, trainer, communicator.

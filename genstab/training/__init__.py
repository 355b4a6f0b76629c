"""pix2pix as a LightningModule, its losses and its callbacks."""

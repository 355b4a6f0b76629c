"""Train an anti-aliased pix2pix: `python train.py [key=value …]`, the same as `genstab train`."""

from genstab.cli.main import train

if __name__ == "__main__":
    train()

"""What is measured: shift PSNR under every protocol, quality, features, corruptions."""

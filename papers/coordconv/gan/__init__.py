"""Sort-of-CLEVR and LSUN: GAN and VAE with and without CoordConv (spec 3, 4 and 7; claims C10-C12)."""

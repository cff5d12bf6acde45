"""The on-disk protocol: identity, layout, precision, writer, reader. No timm, no side network."""

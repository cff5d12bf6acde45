"""The on-disk protocol: identity, layout, precision, writer, reader (``docs/protocol.md``). No timm, no side network."""

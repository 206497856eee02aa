"""What :func:`mtlfast.fuse_` knows: how modules change place, and which are worth it."""

"""Stand-ins for what QRMI calls: the services of each type, and the native libraries it loads."""

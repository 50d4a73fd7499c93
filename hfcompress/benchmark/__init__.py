"""Models against each other in the engines that run them: latency, memory and size on a grid."""

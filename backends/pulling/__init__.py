"""Model files from somewhere else: what a source means, how its bytes come here whole, and the folder where they lie."""

"""Its place puts this folder on the import path: tests share `naive`, `gradcheck` and the like."""

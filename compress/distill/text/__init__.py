"""Training text: windows, packing of documents, stages and text written by the student."""

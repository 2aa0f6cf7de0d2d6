"""From notebook to page: execute the chapters, gate what came out, build the book."""

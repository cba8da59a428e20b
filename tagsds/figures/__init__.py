"""The pictures of docs/how_it_works.md, drawn from the code that they explain: `python -m tagsds.figures docs/pictures`."""

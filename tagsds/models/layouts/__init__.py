"""What layouts of checkpoints are made of, for `tagsds.models.published` and for the folders of the matchers.

    rules.py     one key there, one parameter here, walked in either direction
    matcher.py   what the folder of a matcher says of its authors' files
"""

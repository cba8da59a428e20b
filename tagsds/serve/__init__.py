"""tagsds-serve: a page in the browser on a trained checkpoint, and the same answers as JSON. It stands on tagsds.api.

command   the command line, and the server that listens
app       what answers at which address
guard     what a request may be before it is answered: its host, its size, its origin
worker    one request at the model at a time, a bounded number waiting
desk      the answers: find, proofread, write, align
album     pictures, drawings and regions of the corpus's images
answers   the shapes of requests and answers, of which the OpenAPI description is made
page/     HTML, CSS and scripts; nothing is loaded from other hosts
"""

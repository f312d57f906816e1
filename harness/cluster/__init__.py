"""Work on many processes and machines: a scheduler of Dask's between them, the harness's own functions on its workers."""

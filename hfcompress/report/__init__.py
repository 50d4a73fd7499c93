"""Tables, pictures and pages, drawn from rows alone."""

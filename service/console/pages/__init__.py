"""The pages of the console, a module each: a function builds a plain view from what the API answers, a template shows it.

To add a page: a module here with a function `view(console, viewer, ...)` that returns the variables of its template; a template in
`templates/` that extends `base.html`; a route in `routes.py`, which checks the scope.
"""

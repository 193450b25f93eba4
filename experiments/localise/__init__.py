"""The adoption study: a model taken for foreign is adopted, made localist, and compared with controls."""

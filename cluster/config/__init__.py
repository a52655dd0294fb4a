"""Configuration: its types (`models`), its loader, its secrets, and what differs between the file and what runs.

Import from the modules: this package stays empty so that importing the types brings in neither YAML nor CEL.
"""

"""The definitions of runs and studies: their settings, cost, directories and registrations."""

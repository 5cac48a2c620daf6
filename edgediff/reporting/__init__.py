"""What a report is made of: figures, and the templates of the HTML page and the model card."""
